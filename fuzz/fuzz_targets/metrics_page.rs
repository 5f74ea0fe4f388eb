#![no_main]
#[path = "../decoders.rs"]
#[allow(dead_code, missing_docs)]
mod decoders;
libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::metrics_page(data));
