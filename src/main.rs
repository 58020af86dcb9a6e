//! The program: everything is in the library.

/// Requests and rows are many small allocations on many threads, which this one serves faster than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    redeemer::cli::run()
}
