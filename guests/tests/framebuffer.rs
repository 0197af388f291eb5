//! A guest draws, the host looks: only what was drawn is converted, the image is that of a full redraw, and no store
//! but the framebuffer's knows that a viewer looks.

use notdirty::devices::{Framebuffer, Redraw};
use notdirty::programs::draw::{self, Rect};
use notdirty::{EngineKind, ExitBy, GuestExit, Machine, MachineExit, Program, RunLimits};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });
/// A stride of one page: what is dirty is exactly what was drawn.
const WIDTH: u32 = 1024;
const HEIGHT: u32 = 100;
const BAND: (u32, u32) = (20, 70);
const COUNT: u32 = 2000;
const SEED: u32 = 12345;
const TIMEOUT: Option<Duration> = Some(Duration::from_secs(20));

fn machine(engine: EngineKind, width: u32, height: u32, band: (u32, u32), count: u32) -> (Machine, Arc<Framebuffer>) {
    let program = Program::Image(draw::draw(count, SEED, band));
    let builder = Machine::builder().ram_size(4 << 20).engine(engine).framebuffer(width, height);
    let machine = builder.program(program).build().expect("it is built");
    let screen = machine.framebuffer().expect("asked for").clone();
    (machine, screen)
}

/// What the host knows must be there after so many rectangles.
fn picture(rects: impl Iterator<Item = Rect>, width: u32, height: u32) -> Vec<u8> {
    let mut rgb = vec![0; 3 * (width * height) as usize];
    for rect in rects {
        for (y, x) in (0..rect.height).flat_map(|y| (0..rect.width).map(move |x| (rect.y + y, rect.x + x))) {
            let [blue, green, red, _] = rect.colour.to_le_bytes();
            rgb[3 * (y * width + x) as usize..][..3].copy_from_slice(&[red, green, blue]);
        }
    }
    rgb
}

fn lines(rects: &[Rect]) -> Vec<bool> {
    (0..HEIGHT).map(|line| rects.iter().any(|r| (r.y..r.y + r.height).contains(&line))).collect()
}

/// Runs in slices, and redraws after each.
fn redraw_between_slices(engine: EngineKind, slice: u64) {
    let (mut machine, screen) = machine(engine, WIDTH, HEIGHT, BAND, COUNT);
    let rects: Vec<_> = draw::rects(COUNT, SEED, WIDTH, BAND).collect();
    let (mut before, mut converted, mut total) = (screen.image(), vec![0; HEIGHT as usize], 0);
    let mut redraws = 0;
    for n in 1.. {
        // The rectangle that was begun and not told of yet, up to the one that is begun now.
        let from = screen.frames() as usize;
        let exit = machine.run(&RunLimits { max_insns: Some(n * slice), deadline: None });
        let drawn = lines(&rects[from..rects.len().min(screen.frames() as usize + 1)]);
        let Redraw { pages, lines } = screen.redraw(TIMEOUT).expect("a parked vCPU has answered");
        let (image, now) = (screen.image(), screen.conversions());
        assert_eq!(image, screen.full(), "slice {n}: a dirty line was left out");
        let new: Vec<bool> = now.iter().zip(&converted).map(|(now, then)| now > then).collect();
        assert!(
            new.iter().zip(&drawn).all(|(new, drawn)| !new || *drawn),
            "slice {n}: a line that the guest did not draw"
        );
        for (line, (old, new_line)) in
            before.chunks(3 * WIDTH as usize).zip(image.chunks(3 * WIDTH as usize)).enumerate()
        {
            assert!(old == new_line || new[line]);
        }
        assert_eq!((pages, u64::from(lines)), (u64::from(lines), new.iter().filter(|new| **new).count() as u64));
        total += u64::from(lines);
        redraws += u32::from(lines != 0);
        (before, converted) = (image, now);
        if exit != MachineExit::InsnLimit {
            assert_eq!(exit, PASS);
            break;
        }
    }
    assert!(redraws > 20, "only {redraws} redraws: the test tests nothing");
    assert_eq!(before, picture(rects.iter().copied(), WIDTH, HEIGHT));
    let ever: Vec<bool> = converted.iter().map(|n| *n > 0).collect();
    assert_eq!(ever, self::lines(&rects));
    assert_eq!(screen.redraw(TIMEOUT).expect("parked"), Redraw::default(), "nothing is left");
    // One slow store for each line that a redraw converted, and none elsewhere.
    assert_eq!(machine.stats().tlb.notdirty, total);
}

#[test]
fn redraws_between_slices_convert_what_was_drawn_and_nothing_else() {
    redraw_between_slices(EngineKind::Jit, 20_000);
    redraw_between_slices(EngineKind::Interp, 30_011);
}

#[test]
fn a_guest_that_nobody_looks_at_pays_once_a_page() {
    let (mut machine, screen) = machine(EngineKind::Jit, WIDTH, HEIGHT, BAND, COUNT);
    assert_eq!(machine.run_to_end(), PASS);
    let drawn = lines(&draw::rects(COUNT, SEED, WIDTH, BAND).collect::<Vec<_>>());
    let drawn = drawn.into_iter().filter(|drawn| *drawn).count() as u64;
    assert_eq!(machine.stats().tlb.notdirty, drawn);
    assert_eq!(screen.redraw(TIMEOUT).expect("parked"), Redraw { pages: drawn, lines: drawn as u32 });
    assert_eq!(screen.image(), screen.full());
}

/// Redraws from a second thread while the guest draws; gives the picture that a last redraw leaves.
fn redraw_meanwhile(machine: &mut Machine, screen: &Framebuffer) -> Vec<u8> {
    let over = AtomicBool::new(false);
    let redraws = std::thread::scope(|s| {
        let painter = s.spawn(|| {
            let mut redraws = 0;
            while !over.load(Ordering::Acquire) {
                redraws += u64::from(screen.redraw(TIMEOUT).expect("the vCPU answers") != Redraw::default());
            }
            redraws
        });
        assert_eq!(machine.run_to_end(), PASS);
        over.store(true, Ordering::Release);
        painter.join().expect("it does not panic")
    });
    assert!(redraws > 0);
    screen.redraw(TIMEOUT).expect("parked");
    assert_eq!(screen.image(), screen.full(), "a dirty line was left out");
    screen.image()
}

#[test]
fn a_thread_that_redraws_while_the_guest_draws_misses_nothing() {
    // Lines share pages here.
    let (width, height, band, count) = (100, 300, (50, 250), 30_000);
    let (mut machine, screen) = machine(EngineKind::Jit, width, height, band, count);
    let image = redraw_meanwhile(&mut machine, &screen);
    assert_eq!(image, picture(draw::rects(count, SEED, width, band), width, height));
    let (first, last) = (50 * 400 / 4096 * 4096 / 400, (249 * 400 / 4096 + 1) * 4096 / 400);
    let untouched = |line: &usize| *line < first || *line > last;
    assert!(screen.conversions().iter().enumerate().all(|(line, n)| !untouched(&line) || *n == 0));
}

#[test]
fn two_harts_that_draw_over_each_other_are_redrawn_as_they_left_it() {
    let program = Program::Image(draw::draw(30_000, SEED, (0, 64)));
    let builder = Machine::builder().ram_size(4 << 20).harts(2).framebuffer(128, 64);
    let mut machine = builder.program(program).build().expect("it is built");
    let screen = machine.framebuffer().expect("asked for").clone();
    redraw_meanwhile(&mut machine, &screen);
}

#[test]
fn the_command_writes_a_screenshot_and_says_why_it_cannot() {
    let dir = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (image, ppm) = (dir.join("draw.bin"), dir.join("draw.ppm"));
    std::fs::write(&image, draw::draw(50, SEED, (5, 80)).bytes).expect("a file of ours");
    let notdirty = |size: &str, to: &std::path::Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_notdirty"));
        command.args(["run", "--load-addr", "0x80000000", "--framebuffer", size, "--screenshot"]).arg(to).arg(&image);
        command.stdin(std::process::Stdio::null()).output().expect("it is built")
    };
    assert_eq!(notdirty("320x100", &ppm).status.code(), Some(0));
    let written = std::fs::read(&ppm).expect("it wrote one");
    let expected = picture(draw::rects(50, SEED, 320, (5, 80)), 320, 100);
    assert!(written.strip_prefix(b"P6\n320 100\n255\n").is_some_and(|rgb| rgb == expected));
    for (size, to, code, what) in [
        ("320x0", &ppm, 2, "320x0 pixels"),
        ("99999x1", &ppm, 2, "99999x1 pixels"),
        ("320x100", &dir.join("no").join("where.ppm"), 2, "where.ppm"),
    ] {
        let output = notdirty(size, to);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && text.contains(what), "{size}: {:?} {text}", output.status);
    }
}
