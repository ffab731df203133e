//! The developer's commands: run, test, bench, guest
fn main() {}
