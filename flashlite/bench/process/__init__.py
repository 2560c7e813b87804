"""Measurements in processes of their own, so that none inherits another's memory or warm caches."""
