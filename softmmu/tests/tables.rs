//! The example runs.

#[path = "../examples/tables.rs"]
mod tables;

#[test]
fn a_program_with_page_tables_of_its_own_has_address_spaces_rights_and_marks() {
    tables::main().unwrap();
}
