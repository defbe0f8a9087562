#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| advae_fuzz::target("spec")(data));
