"""HyperFleet API: the REST data layer of a fleet of Kubernetes clusters."""

__version__ = "0.1.0"
