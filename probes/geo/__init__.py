"""Where on the earth units of a model respond: spatial statistics, their controls and probes for coordinates."""
