#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| skyhook_oci::fuzzing::platform(bytes));
