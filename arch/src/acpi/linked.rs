//! The same tables for firmware that finds a place for them itself, with a program
//! that tells it how to put them together: the table loader of QEMU's fw_cfg
//! (SeaBIOS `romfile_loader.h`).
//!
//! ```text
//!  etc/acpi/rsdp    ─► segment F     pointers hold offsets into the other file, to
//!  etc/acpi/tables  ─► high memory   which the loader adds its address
//! ```

use super::{Machine, OEM, place};
use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;

/// The file of the RSDP.
const RSDP: &str = "etc/acpi/rsdp";
/// The file of all other tables.
const TABLES: &str = "etc/acpi/tables";
/// The file of the program.
const LOADER: &str = "etc/table-loader";

/// What firmware reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    /// Files, by their names.
    pub files: [(&'static str, Vec<u8>); 3],
}

// Commands, and zones of memory.
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const HIGH: u8 = 1;
const SEGMENT_F: u8 = 2;
/// A command, padding included.
const COMMAND: usize = 128;
/// A name in one, its NUL included.
const NAME: usize = 56;

// Offsets of fields (ACPI 6.5, tables 5.3, 5.4 and 5.9).
const RSDP_CHECKSUM: usize = 8;
const RSDP_XSDT: usize = 24;
const RSDP_EXTENDED_CHECKSUM: usize = 32;
/// Bytes that the first checksum is for.
const RSDP_FIRST: usize = 20;
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;
const FADT_FACS: usize = 36;
const FADT_DSDT: usize = 140;
const XSDT_ENTRIES: usize = 36;

/// The tables of `machine`, and how to link them.
pub fn linked(machine: &Machine) -> Linked {
    let mut tables = Vec::new();
    let places = place(machine, 0, &mut tables);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, places.xsdt).to_aml_bytes(&mut rsdp);
    let mut program = Program::default();
    program.allocate(RSDP, 16, SEGMENT_F);
    program.allocate(TABLES, 64, HIGH);
    let (fadt, xsdt) = (places.fadt as usize, places.xsdt as usize);
    if places.facs.is_some() {
        program.add_pointer(TABLES, fadt + FADT_FACS, 4);
    }
    program.add_pointer(TABLES, fadt + FADT_DSDT, 8);
    for entry in (XSDT_ENTRIES..length(&tables, xsdt)).step_by(8) {
        program.add_pointer(TABLES, xsdt + entry, 8);
    }
    program.add_pointer(RSDP, RSDP_XSDT, 8);
    for table in [fadt, xsdt] {
        program.add_checksum(TABLES, table + CHECKSUM, table, length(&tables, table));
    }
    program.add_checksum(RSDP, RSDP_CHECKSUM, 0, RSDP_FIRST);
    program.add_checksum(RSDP, RSDP_EXTENDED_CHECKSUM, 0, rsdp.len());
    Linked { files: [(RSDP, rsdp), (TABLES, tables), (LOADER, program.0)] }
}

/// The length that the table at `at` says it has.
fn length(tables: &[u8], at: usize) -> usize {
    let field = tables.get(at + LENGTH..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

#[derive(Default)]
struct Program(Vec<u8>);

impl Program {
    fn command(&mut self, code: u32, fields: &[&[u8]]) {
        let end = self.0.len() + COMMAND;
        self.0.extend(code.to_le_bytes());
        fields.iter().for_each(|field| self.0.extend(*field));
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        self.command(ALLOCATE, &[&name(file), &align.to_le_bytes(), &[zone]]);
    }

    /// Adds the address of the tables to the `size` bytes at `at`.
    fn add_pointer(&mut self, file: &str, at: usize, size: u8) {
        let at = (at as u32).to_le_bytes();
        self.command(ADD_POINTER, &[&name(file), &name(TABLES), &at, &[size]]);
    }

    fn add_checksum(&mut self, file: &str, at: usize, start: usize, length: usize) {
        let [at, start, length] = [at, start, length].map(|n| (n as u32).to_le_bytes());
        self.command(ADD_CHECKSUM, &[&name(file), &at, &start, &length]);
    }
}

fn name(file: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    name.iter_mut().zip(file.bytes()).for_each(|(to, from)| *to = from);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::Pc;
    use std::collections::BTreeMap;

    /// Carries the program out as SeaBIOS does; `places` are addresses of files.
    fn link(linked: &Linked, places: &BTreeMap<&str, u64>) -> BTreeMap<String, Vec<u8>> {
        let mut memory = BTreeMap::new();
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|b| *b == 0).unwrap();
            String::from_utf8(bytes[..end].to_vec()).unwrap()
        };
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
        let [.., (_, program)] = &linked.files;
        assert_eq!(program.len() % COMMAND, 0);
        for command in program.chunks(COMMAND) {
            let file = text(&command[4..]);
            match number(command) as u32 {
                ALLOCATE => {
                    let (_, content) = linked.files.iter().find(|(n, _)| *n == file).unwrap();
                    let align = number(&command[60..]) as u64;
                    assert_eq!(places[file.as_str()] % align, 0);
                    memory.insert(file, content.clone());
                }
                ADD_POINTER => {
                    let source = text(&command[60..]);
                    let (at, size) = (number(&command[116..]), usize::from(command[120]));
                    let field = &mut memory.get_mut(&file).unwrap()[at..at + size];
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(field);
                    let value = u64::from_le_bytes(value) + places[source.as_str()];
                    field.copy_from_slice(&value.to_le_bytes()[..size]);
                }
                ADD_CHECKSUM => {
                    let [at, start, length] = [60, 64, 68].map(|at| number(&command[at..]));
                    let file = memory.get_mut(&file).unwrap();
                    let sum =
                        file[start..start + length].iter().fold(0u8, |s, b| s.wrapping_add(*b));
                    file[at] = file[at].wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
        memory
    }

    #[test]
    fn linked_tables_are_whole_wherever_they_are_put() {
        let pc = Pc { sci: 9, window: (0xe000_0000, 0x1000), ..Pc::default() };
        for pc in [None, Some(pc)] {
            let machine = Machine { cpus: 2, serial: true, pci: true, pc, ..Machine::default() };
            let (rsdp_at, base) = (0xf_5a50, 0x7ff_e400);
            let places = BTreeMap::from([(RSDP, rsdp_at), (TABLES, base)]);
            let memory = link(&linked(&machine), &places);
            let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
            let rsdp = &memory[RSDP];
            assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
            let tables = &memory[TABLES];
            let table = |address: &[u8]| {
                let at = u64::from_le_bytes(address.try_into().unwrap()) - base;
                let table = &tables[at as usize..];
                &table[..length(table, 0)]
            };
            let xsdt = table(&rsdp[24..32]);
            assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
            let found: Vec<_> = xsdt[36..].chunks(8).map(table).collect();
            assert!(found.iter().all(|table| sum(table) == 0));
            assert_eq!((&found[0][..4], &found[1][..4]), (&b"FACP"[..], &b"APIC"[..]));
            let dsdt = table(&found[0][FADT_DSDT..FADT_DSDT + 8]);
            assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
            if machine.pc.is_some() {
                let facs = u32::from_le_bytes(found[0][36..40].try_into().unwrap()) as u64;
                assert_eq!(table(&facs.to_le_bytes())[..4], *b"FACS");
            }
        }
    }
}
