import json

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.saes import build, build_trainable, load
from monosem.saes.files import find_dictionary


def random(architecture: str = "topk"):
    dictionary = build(architecture, d_in=6, n_latents=11, k=3)
    for parameter in dictionary.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    dictionary.place = "resid_post.2"
    return dictionary


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_round_trip_is_exact(architecture, tmp_path):
    dictionary = random(architecture)
    again = load(dictionary.save(tmp_path / "d"))
    assert type(again) is type(dictionary) and again.config == dictionary.config
    assert (again.place, again.provenance) == (dictionary.place, dictionary.provenance)
    for name, tensor in dictionary.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])
    x = torch.randn(5, 6)
    assert torch.equal(dictionary(x), again(x))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    a, b = random().save(tmp_path / "a"), random().save(tmp_path / "b")
    for file in sorted(p.name for p in a.iterdir()):
        assert (a / file).read_bytes() == (b / file).read_bytes()


def edit_description(folder, **changes):
    path = folder / "dictionary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damage_is_named(tmp_path):
    def fresh(name):
        return random().save(tmp_path / name)

    with pytest.raises(InputError, match="holds no dictionary"):
        load(tmp_path)
    folder = fresh("schema")
    edit_description(folder, schema=99)
    with pytest.raises(InputError, match="schema 99, this version reads 1"):
        load(folder)
    folder = fresh("architecture")
    edit_description(folder, architecture="topkk")
    with pytest.raises(InputError, match="unknown architecture 'topkk': did you mean 'topk'"):
        load(folder)
    folder = fresh("mixed")
    other = build("topk", d_in=6, n_latents=11, k=3).save(tmp_path / "other")
    (folder / "dictionary.safetensors").write_bytes((other / "dictionary.safetensors").read_bytes())
    with pytest.raises(InputError, match="not the file its description was written for"):
        load(folder)
    folder = fresh("torn")
    (folder / "dictionary.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="is not a dictionary weight file"):
        load(folder)
    folder = fresh("json")
    (folder / "dictionary.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": None}, "an entry is missing or of the wrong type"),
        ({"config": {"d_in": "six", "n_latents": 11}}, "an entry is missing or of the wrong type"),
        ({"config": {"d_in": 6, "n_latents": 11, "k": 0}}, "k must be from 1 to n_latents=11, got 0"),
        ({"architecture": ["topk"]}, "an entry is missing or of the wrong type"),
        ({"place": None}, "an entry is missing or of the wrong type"),
        ({"provenance": {"side": 1}}, "an entry is missing or of the wrong type .*side"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, changes, reason):
    folder = random().save(tmp_path / "d")
    edit_description(folder, **changes)
    with pytest.raises(InputError, match=rf"d/dictionary\.json: {reason}"):
        load(folder)


def test_a_file_of_a_dictionary_stands_for_its_folder(tmp_path):
    folder = random().save(tmp_path / "d")
    for name in ("dictionary.json", "dictionary.safetensors"):
        assert torch.equal(load(folder / name).W_dec, random().W_dec)


def test_misspelt_names_suggest_the_right_one():
    with pytest.raises(InputError, match="unknown architecture 'batch_topk': did you mean 'batchtopk'"):
        build("batch_topk", d_in=4, n_latents=8, k=2)
    with pytest.raises(InputError, match="unknown topk config field 'n_latent': did you mean 'n_latents'"):
        build("topk", d_in=4, n_latent=8, k=2)
    with pytest.raises(InputError, match="k must be from 1 to n_latents=8, got 9"):
        build("topk", d_in=4, n_latents=8, k=9)


def test_wrong_width_names_the_site():
    with pytest.raises(InputError, match=r"width 5 given to a dictionary of width 6.*resid_post\.2"):
        random().encode(torch.zeros(3, 5))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_what_can_be_trained_is_built_as_by_build(architecture):
    shape = {"d_in": 6, "n_latents": 11, "k": 3}
    assert repr(build_trainable(architecture, **shape)) == repr(build(architecture, **shape))


@pytest.mark.parametrize(
    ("architecture", "sentence"),
    [
        ("pca", "architecture 'pca' cannot be trained: give abstopk or batchtopk"),
        ("neurons", "architecture 'neurons' cannot be trained: give abstopk or batchtopk"),
        ("topkk", "unknown architecture 'topkk': did you mean 'topk'"),
    ],
)
def test_what_cannot_be_trained_names_what_can(architecture, sentence):
    with pytest.raises(InputError, match=sentence):
        build_trainable(architecture, d_in=6, n_latents=6, k=3)


def test_a_run_with_one_dictionary_is_loaded_and_several_are_listed(tmp_path):
    random().save(tmp_path / "run" / "dictionaries" / "first")
    assert torch.equal(load(tmp_path / "run").W_dec, random().W_dec)
    assert find_dictionary(tmp_path / "run")[0] == tmp_path / "run" / "dictionaries" / "first"
    random().save(tmp_path / "run" / "dictionaries" / "second")
    for read in (load, find_dictionary):
        with pytest.raises(InputError, match=r"dictionaries/first, .*dictionaries/second; give the folder"):
            read(tmp_path / "run")


def test_what_is_no_tensor_no_code_or_not_fp32_is_refused_in_one_sentence():
    dictionary = random()
    for rows in (np.zeros((2, 6), dtype=np.float32), [[0.0] * 6]):
        with pytest.raises(InputError, match=rf"a tensor \[\.\.\., 6\], not {type(rows).__name__}: .*as_tensor"):
            dictionary.encode(rows)
    with pytest.raises(InputError, match=r"decode takes the SparseCode .* not Tensor: .*SparseCode.from_dense"):
        dictionary.decode(torch.zeros(2, 11))
    with pytest.raises(InputError, match=r"the weights are torch.bfloat16, .* undo it with \.float\(\)"):
        dictionary.to(torch.bfloat16).encode(torch.zeros(2, 6))
    assert dictionary.float().encode(torch.ones(2, 6)).indptr.shape == (3,)


def test_a_run_that_stopped_before_its_first_dictionary_says_so(tmp_path):
    for name in ("config.json", "timing.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="a run that has written no dictionary yet: continue it with --resume"):
        find_dictionary(tmp_path)
