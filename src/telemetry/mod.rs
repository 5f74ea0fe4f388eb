//! telemetry layer.
