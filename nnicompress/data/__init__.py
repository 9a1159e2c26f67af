"""Shipped data objects, each with the roles train, validation and test."""
