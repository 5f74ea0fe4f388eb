//! Programs that people run on a shared volume, with the faults they fear.

mod postgres;
