"""Whether NC1 predicts how far a layer of a really trained network can be compressed."""
