"""Devices, cores and memory of the machine."""
