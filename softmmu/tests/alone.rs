//! The example runs.

#[path = "../examples/alone.rs"]
mod alone;

#[test]
fn a_program_without_a_translator_hears_of_every_writer_while_ram_comes_and_goes() {
    alone::main().unwrap();
}
