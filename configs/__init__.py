"""The yaml files, installed as package data (dho_plugin/config.py finds them)."""
