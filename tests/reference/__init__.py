"""The methods in NumPy float64, from the publications alone: exact, slow, no floors."""
