"""Integrations: one file for each framework. None imports its framework before it is used."""
