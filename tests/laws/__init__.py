"""The laws that every layer obeys, and the registry of all layers."""
