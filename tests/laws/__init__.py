"""The laws that every layer fulfils, and the registry of the layers."""
