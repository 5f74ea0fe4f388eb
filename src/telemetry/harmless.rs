//! Events without control characters, for logs that are written by others' code.
//!
//! The lines that we format ourselves are made plain there ([`log`](super::log)). journald
//! gets fields, in which a line break is no new entry; but who reads them later may show
//! them as lines. So an event with a name in it that would do something is replaced by one
//! that only says it.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};

use crate::quoting;

/// Replaces what would not be one harmless line.
pub(super) struct Harmless;

impl<S: Subscriber> tracing_subscriber::Layer<S> for Harmless {
    fn event_enabled(
        &self,
        event: &Event<'_>,
        _: tracing_subscriber::layer::Context<'_, S>,
    ) -> bool {
        let mut said = Said::default();
        event.record(&mut said);
        let text = format!("{}{}", said.message, said.fields);
        let plain = quoting::plain(&text);
        if plain == text {
            return true;
        }
        match *event.metadata().level() {
            Level::ERROR => tracing::error!("{plain}"),
            Level::WARN => tracing::warn!("{plain}"),
            Level::INFO => tracing::info!("{plain}"),
            Level::DEBUG => tracing::debug!("{plain}"),
            Level::TRACE => tracing::trace!("{plain}"),
        }
        false
    }
}

#[derive(Default)]
struct Said {
    message: String,
    fields: String,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
