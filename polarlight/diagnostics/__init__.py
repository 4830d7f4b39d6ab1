"""What an optimizer does to a network: spectra, leverages, and probes that record them."""
