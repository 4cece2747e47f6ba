//! The fields that `docker image inspect` prints, so that scripts for Docker read our JSON.

use serde_json::{Map, Value, json};

use unionfs::store::Image;

/// Returns Docker's fields and ours in one object. Docker's begin with an upper-case letter.
pub(super) fn object(image: &Image) -> anyhow::Result<Value> {
    let mut fields = match serde_json::to_value(image)? {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let config = &image.config;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let tags = image.names.iter().filter(|name| name.tag.is_some());
    let digests = image.names.iter().filter(|name| name.digest.is_some());
    let layers: Vec<String> = config.diff_ids.iter().map(ToString::to_string).collect();
    let theirs = [
        ("Id", json!(image.id.to_string())),
        (
            "RepoTags",
            json!(tags.map(ToString::to_string).collect::<Vec<_>>()),
        ),
        (
            "RepoDigests",
            json!(digests.map(ToString::to_string).collect::<Vec<_>>()),
        ),
        (
            "Parent",
            json!(image.parent.map(|id| id.to_string()).unwrap_or_default()),
        ),
        ("Comment", json!(text(&config.comment))),
        ("Created", json!(config.created)),
        ("Author", json!(text(&config.author))),
        ("Config", config.config.clone().unwrap_or_else(|| json!({}))),
        ("Architecture", json!(text(&config.architecture))),
        ("Os", json!(text(&config.os))),
        ("Size", json!(image.size)),
        (
            "GraphDriver",
            json!({"Name": image.driver, "Data": driver_data(image)}),
        ),
        ("RootFS", json!({"Type": "layers", "Layers": layers})),
        ("Metadata", json!({"LastTagTime": image.last_updated})),
    ];
    fields.extend(theirs.map(|(name, value)| (name.to_owned(), value)));
    if let Some(variant) = config
        .variant
        .as_ref()
        .filter(|variant| !variant.is_empty())
    {
        fields.insert("Variant".to_owned(), json!(variant));
    }
    Ok(Value::Object(fields))
}

/// The directories of the layers, as overlay2 has them.
fn driver_data(image: &Image) -> Value {
    let paths = image.layers.iter().rev();
    let paths: Vec<String> = paths
        .map(|layer| layer.place.path().to_string_lossy().into_owned())
        .collect();
    match paths.split_first() {
        Some((upper, [])) => json!({"UpperDir": upper}),
        Some((upper, lowers)) => json!({"UpperDir": upper, "LowerDir": lowers.join(":")}),
        None => Value::Null,
    }
}
