"""What a layer is: kinds, candidates, low-rank modules, and putting them in."""
