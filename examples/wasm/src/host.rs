//! An engine with its module, and what a request is.

use crate::words;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use wasmtime::{Config, Engine, Instance, InstancePre, Linker, Memory, Module, Result, Store};
use wasmtime::{bail, ensure};

/// Where the guest wants its input, and how much of it fits.
const INPUT: u32 = 0x1_0000;
const INPUT_ROOM: usize = 0xF_0000;

/// Bytes of the guest's memory when it starts, as the module says.
pub const INITIAL: usize = 16 << 20;

/// An engine that is ready for requests.
pub struct Host {
    pub name: &'static str,
    engine: Engine,
    module: InstancePre<()>,
}

/// A guest, until it is dropped.
pub struct Guest {
    pub store: Store<()>,
    pub instance: Instance,
    pub memory: Memory,
}

impl Host {
    pub fn new(name: &'static str, config: &Config, module: &[u8]) -> Result<Self> {
        let engine = Engine::new(config)?;
        let module = Module::new(&engine, module)?;
        let module = Linker::new(&engine).instantiate_pre(&module)?;
        Ok(Self { name, engine, module })
    }

    pub fn guest(&self) -> Result<Guest> {
        let mut store = Store::new(&self.engine, ());
        let instance = self.module.instantiate(&mut store)?;
        let Some(memory) = instance.get_memory(&mut store, "memory") else {
            bail!("the guest exports no memory")
        };
        Ok(Guest { store, instance, memory })
    }

    /// Serves a request in a guest of its own, and checks the answer against one computed without it.
    /// Tells how long it took from before there was a guest until there was none, but for the check.
    pub fn serve(&self, number: u64) -> Result<Duration> {
        let words = words::request(number);
        let text = words::text(&words);
        let start = Instant::now();
        let mut guest = self.guest()?;
        let (answers, known, unknown) = guest.count(&text)?;
        let ran = start.elapsed();
        guest.check(&words, (answers as usize, known as usize, unknown as usize))?;
        let start = Instant::now();
        drop(guest);
        Ok(ran + start.elapsed())
    }
}

impl Guest {
    /// Calls one of the functions that take a number and return one.
    pub fn call(&mut self, name: &str, number: u32) -> Result<u32> {
        let function = self.instance.get_typed_func::<u32, u32>(&mut self.store, name)?;
        function.call(&mut self.store, number)
    }

    fn count(&mut self, text: &str) -> Result<(u32, u32, u32)> {
        self.memory.write(&mut self.store, INPUT as usize, text.as_bytes())?;
        let count = self.instance.get_typed_func::<(u32, u32), _>(&mut self.store, "count")?;
        count.call(&mut self.store, (INPUT, text.len() as u32))
    }

    /// Teaches the guest all words.
    pub fn learn(&mut self) -> Result<()> {
        let all: Vec<_> = (0..words::WORDS).map(words::word).collect();
        let learn = self.instance.get_typed_func::<(u32, u32), u32>(&mut self.store, "learn")?;
        for words in all.chunks(INPUT_ROOM / 12) {
            let text = words.join("\n");
            self.memory.write(&mut self.store, INPUT as usize, text.as_bytes())?;
            let new = learn.call(&mut self.store, (INPUT, text.len() as u32))?;
            ensure!(new as usize == words.len(), "it learned {new} words of {}", words.len());
        }
        Ok(())
    }

    /// What it answered must be right. Counts begin at one, the answers where memory began to grow, and
    /// nothing may be behind them: marks of another request would show in each.
    fn check(
        &self,
        words: &[Option<u64>],
        (at, known, unknown): (usize, usize, usize),
    ) -> Result<()> {
        let memory = self.memory.data(&self.store);
        ensure!(at == INITIAL && memory.len() == at + (64 << 10), "memory was not as in the image");
        let mut counts = HashMap::new();
        let mut answers = memory[at..].chunks_exact(8);
        for word in words.iter().flatten() {
            let count: &mut u32 = counts.entry(word).or_default();
            *count += 1;
            let answer = answers.next().map(|it| (number(&it[..4]), number(&it[4..])));
            let Some((text, said)) = answer else { bail!("too few answers") };
            let spelt = words::word(*word);
            let text = memory.get(text as usize..).and_then(|it| it.get(..spelt.len()));
            ensure!(text == Some(spelt.as_bytes()), "the wrong word for {spelt}");
            ensure!(said == *count, "{spelt} was counted {said} times, not {count}");
        }
        let expected = words.iter().flatten().count();
        ensure!((known, unknown) == (expected, words.len() - expected), "wrong numbers of words");
        ensure!(answers.take(256).flatten().all(|it| *it == 0), "marks of another request");
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}
