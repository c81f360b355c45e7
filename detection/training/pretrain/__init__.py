"""Backbone pretraining on crops or on an ImageFolder."""
