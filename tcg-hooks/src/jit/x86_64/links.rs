//! Where the jumps of a TB lead: the patches that link them, and what they say.
//!
//! ```text
//!   jmp TB ─▶                                              stub: mov eax, exit ; jmp leave       Link::{To, Stub}
//!   jmp guard     guard: cmp [mappings],number ; jne via ; jmp TB              via: jump cache   Link::While, where one is needed after all
//!   cmp [mappings],number ; jne via ; jmp TB        via: call via or unlinked ; exit, pc         the same, where that was known
//! ```
use super::thunks::Thunks;
use crate::jit::code_cache::{CodeCache, CodeOffset};
use crate::jit::context::NO_MAPPINGS;
use crate::jit::{Link, Way};

/// Bytes of a guard that lies behind: `cmp dword [rbp+disp32], imm32` ; `jne` ; `jmp`.
const BEHIND: u32 = 10 + 2 + 5;

/// Where the number of its guard is.
fn number_of(way: &Way) -> CodeOffset {
    if way.guarded { way.field - 2 - 4 } else { way.via - 5 - 2 - 4 }
}

/// Where the displacement of the jump behind its guard is.
fn jump_of(way: &Way) -> CodeOffset {
    if way.guarded { way.field + 4 + 1 } else { way.via - 4 }
}

/// Where its jump leads while it has a guarded link.
fn guard_of(way: &Way) -> CodeOffset {
    if way.guarded { way.via } else { way.via - BEHIND }
}

/// Points the displacement at `field` there.
fn point(code: &mut CodeCache, field: CodeOffset, to: CodeOffset) {
    let distance = (i64::from(to) - (i64::from(field) + 4)) as i32;
    code.patch(field, distance.to_le_bytes());
}

pub(super) fn link(code: &mut CodeCache, thunks: &Thunks, way: &Way, link: Link) {
    match link {
        Link::Stub if way.guarded => {
            code.patch(number_of(way), NO_MAPPINGS.to_le_bytes());
            point(code, way.via + 1, thunks.unlinked);
            point(code, way.field, way.stub);
        }
        Link::Stub => point(code, way.field, way.stub),
        Link::To(entry) => point(code, way.field, entry),
        Link::While(entry, mappings) => {
            code.patch(number_of(way), mappings.to_le_bytes());
            point(code, jump_of(way), entry);
            point(code, way.field, guard_of(way));
        }
        Link::Jump => point(code, way.field, way.via),
    }
    if way.guarded && link != Link::Stub {
        point(code, way.via + 1, thunks.via[Thunks::via_of(way.pc)]);
    }
}

#[cfg(any(test, feature = "testkit"))]
pub(super) fn linked(code: &CodeCache, way: &Way, number: u32) -> Result<Link, String> {
    let word = |at| code.bytes(at, 4).try_into().map_or(0, u32::from_le_bytes);
    let target = |field: CodeOffset| field.wrapping_add(4).wrapping_add(word(field));
    // mov eax, number; or call, in front of the number
    let (first, len) = if way.guarded { (0xe8, 9) } else { (0xb8, 5) };
    let stub = code.bytes(way.stub, len);
    if stub[0] != first || stub[len - 4..] != number.to_le_bytes() {
        return Err(format!("says {stub:x?}"));
    }
    if way.field == 0 {
        return Ok(Link::Stub);
    }
    let goes = target(way.field);
    let closed = !way.guarded || word(number_of(way)) == NO_MAPPINGS;
    Ok(match goes {
        _ if goes == way.stub && !closed => return Err("is not asked for, as the guard lets it by".into()),
        _ if goes == way.stub && !way.guarded => Link::Stub,
        _ if way.via != 0 && goes == guard_of(way) && !(way.guarded && closed) => {
            Link::While(target(jump_of(way)), word(number_of(way)))
        }
        _ if goes == way.stub => Link::Stub,
        _ if way.via != 0 && goes == way.via => Link::Jump,
        _ => Link::To(goes),
    })
}
