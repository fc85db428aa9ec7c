"""Tasks: sparse probing, absorption, TPP, SCR and RAVEL."""
