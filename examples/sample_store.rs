//! Makes a small image store in Docker's own layout, without engine or network:
//!
//! ```sh
//! cargo run --example sample-store -- /tmp/sample
//! unionfs --root /tmp/sample images
//! ```
//! The store contains the images `sample:1` and `sample:2`, which share layers, and a stopped
//! container `sample`. It is for trying unionfs and for tests (the README's first command).

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [dir] = arguments.as_slice() else {
        eprintln!("usage: sample-store DIR    (DIR must be empty or not exist)");
        return ExitCode::from(2);
    };
    match testkit::store::sample::make(Path::new(dir)) {
        Ok(made) => {
            for (name, id) in &made.images {
                println!("{name}\t{id}");
            }
            println!("container {}\t{}", made.container_name, made.container);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sample-store: {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}
