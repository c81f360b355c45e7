"""Backbone pretraining on crops or an ImageFolder."""
