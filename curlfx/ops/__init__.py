"""One rule per op family: how labels pass through it."""
