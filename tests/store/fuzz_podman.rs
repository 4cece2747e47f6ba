//! Random damage to podman's store, of bytes and of JSON values: whatever its files contain,
//! reading it neither panics nor hangs nor returns a path outside of the root.

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::store::layouts::Layout;

use super::fuzz::{Damage, Target, damage, hostile};

/// The store, and the lock for a test that changes its files.
static STORE: LazyLock<Mutex<Target>> =
    LazyLock::new(|| Mutex::new(Target::new(Layout::podman("overlay").store)));

/// The records, of which the first is damaged most.
const RECORDS: [&str; 3] = [
    "overlay-layers/layers.json",
    "overlay-images/images.json",
    "overlay-containers/containers.json",
];

/// One change to a list of records.
#[derive(Clone, Debug)]
enum Edit {
    /// Sets a field of a record.
    Set(usize, usize, Value),
    /// Sets a field of a record to the value of a field of another record.
    Copy(usize, usize, usize, usize),
    RemoveField(usize, usize),
    Remove(usize),
    /// Repeats a record at the end.
    Repeat(usize),
    Replace(Value),
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => hostile().prop_map(Value::String),
        1 => Just(Value::Null),
        1 => any::<i64>().prop_map(|number| json!(number)),
        1 => prop::collection::vec(hostile(), 0..4).prop_map(|list| json!(list)),
        1 => Just(json!({})),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<usize>;
    prop_oneof![
        3 => (at(), at(), value()).prop_map(|(r, f, value)| Edit::Set(r, f, value)),
        4 => (at(), at(), at(), at()).prop_map(|(r, f, from, of)| Edit::Copy(r, f, from, of)),
        1 => (at(), at()).prop_map(|(r, f)| Edit::RemoveField(r, f)),
        1 => at().prop_map(Edit::Remove),
        1 => at().prop_map(Edit::Repeat),
        1 => (at(), value()).prop_map(|(_, value)| Edit::Replace(value)),
    ]
}

/// The fields that unionfs reads; a change may add any of them.
const FIELDS: [&str; 7] = [
    "id",
    "parent",
    "diff-digest",
    "diff-size",
    "names",
    "layer",
    "image",
];

fn field(number: usize) -> &'static str {
    FIELDS[number % FIELDS.len()]
}

fn change(records: &mut Value, edit: &Edit) {
    // A replaced value stays replaced.
    let objects = |list: &&mut Vec<Value>| !list.is_empty() && list.iter().all(Value::is_object);
    let Some(list) = records.as_array_mut().filter(objects) else {
        return;
    };
    let count = list.len();
    match edit {
        Edit::Set(record, name, value) => list[record % count][field(*name)] = value.clone(),
        Edit::Copy(record, name, from, of) => {
            let value = list[from % count][field(*of)].clone();
            list[record % count][field(*name)] = value;
        }
        Edit::RemoveField(record, name) => {
            let object = list[record % count].as_object_mut().unwrap();
            object.remove(field(*name));
        }
        Edit::Remove(record) => drop(list.remove(record % count)),
        Edit::Repeat(record) => list.push(list[record % count].clone()),
        Edit::Replace(value) => *records = value.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_to_podmans_files_makes_reading_panic_or_leave_the_root(
        changes in prop::collection::vec((any::<usize>(), damage()), 1..4)
    ) {
        let target = STORE.lock().unwrap();
        let changes: Vec<(usize, Damage)> = changes;
        prop_assert!(target.survives(&changes));
    }

    #[test]
    fn no_records_of_podmans_make_reading_panic_or_leave_the_root(
        which in prop::sample::select(&[0usize, 0, 1, 2][..]),
        edits in prop::collection::vec(edit(), 1..5)
    ) {
        let target = STORE.lock().unwrap();
        let path: PathBuf = target.store.root.join(RECORDS[which]);
        let before = std::fs::read(&path).unwrap();
        let mut records = serde_json::from_slice(&before).unwrap();
        for edit in &edits {
            change(&mut records, edit);
        }
        std::fs::write(&path, records.to_string()).unwrap();
        let survived = target.reads();
        std::fs::write(&path, before).unwrap();
        prop_assert!(survived);
    }
}
