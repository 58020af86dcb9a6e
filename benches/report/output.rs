//! The only place that prints: the report to standard output, how far it is to standard error.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the place")]

/// Prints to standard output.
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Says how far it is.
pub(crate) fn tell(text: &str) {
    eprintln!("{text}");
}
