//! The names that a user may have meant, for the error about an unknown image.

use super::Name;

/// The number of names that the error lists.
const SHOWN: usize = 3;
/// The number of names that are compared: a store may have any number.
const COMPARED: usize = 10_000;
/// The maximum length of a name that is compared.
const LONGEST: usize = 128;

/// Returns names that are like `text`, the most similar first: other tags of the same repository,
/// and names with few other letters.
pub(crate) fn near(text: &str, names: impl Iterator<Item = Name>) -> Vec<String> {
    if text.len() > LONGEST {
        return Vec::new();
    }
    let mut found: Vec<(usize, String)> = names
        .take(COMPARED)
        .filter(|name| name.tag.is_some() && name.repository.len() <= LONGEST)
        .filter_map(|name| Some((distance(text, &name)?, name.to_string())))
        .collect();
    found.sort();
    found.dedup();
    found
        .into_iter()
        .take(SHOWN)
        .map(|(_, name)| name)
        .collect()
}

/// The number of mistakes. `None`: too many.
fn distance(text: &str, name: &Name) -> Option<usize> {
    let repository = text.rsplit_once(':').map_or(text, |(before, _)| before);
    let last = name.repository.rsplit('/').next().unwrap_or_default();
    if repository == name.repository || text == name.repository || text == last {
        return Some(0);
    }
    let whole = name.to_string();
    let parts = [
        strsim::osa_distance(text, &whole),
        strsim::osa_distance(repository, &name.repository),
        strsim::osa_distance(repository, last),
    ];
    let least = parts.into_iter().min()?;
    let allowed = (repository.chars().count() / 3).min(2);
    (least <= allowed).then_some(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_names_come_first() {
        let name = |text: &str| {
            let (repository, tag) = text.rsplit_once(':').unwrap();
            Name {
                repository: repository.into(),
                tag: Some(tag.into()),
                digest: None,
            }
        };
        let all = [
            "debian:12",
            "debian:11",
            "example.org/team/web:1",
            "alpine:3",
            "a:1",
        ];
        let near = |text: &str| near(text, all.iter().map(|text| name(text)));
        assert_eq!(near("debian:13"), ["debian:11", "debian:12"]);
        assert_eq!(near("debain"), ["debian:11", "debian:12"]);
        assert_eq!(near("web"), ["example.org/team/web:1"]);
        assert_eq!(near("b"), Vec::<String>::new());
        assert_eq!(near("fedora"), Vec::<String>::new());
        assert_eq!(near(&"x".repeat(5000)), Vec::<String>::new());
    }
}
