"""The phenomenon of arXiv 2402.03991 on small networks trained to near-stationarity."""
