//! Writes what every target starts with to DIR/TARGET/: `seeds DIR`. Called by `just fuzz`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os().nth(1).unwrap_or("corpus".into());
    for target in unionfs_fuzz::TARGETS {
        let dir = PathBuf::from(&dir).join(target.name);
        std::fs::create_dir_all(&dir)?;
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number:03}")), seed)?;
        }
    }
    Ok(())
}
