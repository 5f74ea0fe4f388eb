//! Programs that people run on a shared volume, with the faults they fear.

mod git;
mod postgres;
mod site;
mod sqlite;
