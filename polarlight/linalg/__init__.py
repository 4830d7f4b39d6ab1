"""Pure maps on batches of matrices [..., m, n]; knows no optimizer."""
