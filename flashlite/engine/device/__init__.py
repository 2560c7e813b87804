"""Weights on a device that is reached over a bus, such as a GPU: reads land in the host's memory and are sent on."""
