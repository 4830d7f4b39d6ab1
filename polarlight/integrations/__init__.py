"""Bridges to other libraries; each imports its library on use."""
