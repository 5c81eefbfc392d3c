"""The errors a person can act on; the command line prints one as a single line and exits with 1.

CaptionerError
├── ConfigError       a setting that does not exist, has the wrong type or an impossible value
├── DataError         a picture, captions file or prepared data folder that cannot be used
├── CheckpointError   a checkpoint that is missing, damaged or made by another version
└── MetricError       captions that cannot be scored, or a scorer that did not run
"""


class CaptionerError(Exception):
    """Base of every error this package raises for its user's input."""


class ConfigError(CaptionerError):
    """A setting is unknown, of the wrong type, or impossible."""


class DataError(CaptionerError):
    """A picture, a captions file or a prepared data folder cannot be used."""


class CheckpointError(CaptionerError):
    """A checkpoint is missing, damaged or of another version."""


class MetricError(CaptionerError):
    """Captions cannot be scored, or a scorer did not run."""
