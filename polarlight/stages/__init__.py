"""Steps around the map: momentum, balance, second moments, renormalisation, scale conventions."""
