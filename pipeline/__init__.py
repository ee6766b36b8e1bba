"""Activations at scale, in the order data meets the modules: plan, extract, reduce, fit."""
