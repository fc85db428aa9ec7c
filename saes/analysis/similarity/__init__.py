"""How alike two models, layers, seeds or dictionaries are: each score beside its nulls and its chance level.

measures           `compare_rows`: CKA, SVCCA, regression, relative representations of rows, with nulls
moments            CKA from streamed cross-moments, biased and unbiased
cca, regression, relative   what the other three fit and measure
rows, grams        checks, splits and factorisations of rows; inner products of many kernels
representations    what a model makes of a text, and two models on the rows they share
spans              tokens of two tokenizers by where they end
copies             rotated, noisy and moved copies of a model
atoms, growth      ITDA atoms as places in a text: `jaccard`, chance, warm-up, shuffled streams
layers             grids of layers by layers, and whether equal layers find each other
decoders           `compare_decoders`: MMCS and one-to-one matching of decoder rows
"""
