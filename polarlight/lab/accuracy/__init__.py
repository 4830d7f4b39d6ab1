"""Accuracy of polar methods: measured on given spectra, and by an adversarial search."""
