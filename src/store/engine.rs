//! Prefixes of image names that select an engine's store, as in skopeo.
//!
//! ```text
//! docker-daemon:NAME       Docker's store, also the one that it has in containerd
//! containers-storage:NAME  podman's
//! ```

use super::image_store::Store;
use super::records::Records;

/// The engine whose stores are searched for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Any,
    Docker,
    Podman,
}

impl Engine {
    /// Splits a text into the engine that it names and the rest.
    pub(super) fn of(text: &str) -> (Self, &str) {
        let kinds = [
            ("docker-daemon:", Self::Docker),
            ("containers-storage:", Self::Podman),
        ];
        let mut found = kinds
            .iter()
            .filter_map(|(prefix, engine)| Some((*engine, text.strip_prefix(prefix)?)));
        found.next().unwrap_or((Self::Any, text))
    }

    /// Whether a store belongs to this engine. Docker's images in containerd cannot be told from
    /// others there.
    pub(super) fn has(self, store: &Store) -> bool {
        match (self, &store.records) {
            (Self::Any, _)
            | (Self::Podman, Some(Records::Podman(_)))
            | (Self::Docker, Some(Records::Containerd(_))) => true,
            (Self::Docker, None) => !store.is_ours(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_name_engines() {
        assert_eq!(Engine::of("docker-daemon:app:1"), (Engine::Docker, "app:1"));
        let of_podman = Engine::of("containers-storage:localhost/app");
        assert_eq!(of_podman, (Engine::Podman, "localhost/app"));
        for any in [
            "app:1",
            "docker-daemon",
            "docker.io/library/docker-daemon:1",
        ] {
            assert_eq!(Engine::of(any), (Engine::Any, any));
        }
    }
}
