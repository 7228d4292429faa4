"""HyperFleet API: the REST data layer of a fleet of Kubernetes clusters."""

import os

__version__ = "0.1.0"
# Which commit the image was built from.
__commit__ = os.environ.get("HYPERFLEET_COMMIT", "unknown")
