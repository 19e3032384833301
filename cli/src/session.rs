//! What a command works with: its flags, its input and output, and the cluster.

use std::io::{BufRead, Write};

use anyhow::{Context as _, Result};
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use crate::args::Global;
use crate::connect;

/// Input and output.
pub struct Io<'a> {
    pub out: &'a mut dyn Write,
    pub err: &'a mut dyn Write,
    pub input: &'a mut dyn BufRead,
    pub screen: Screen,
}

impl std::fmt::Debug for Io<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("screen", &self.screen)
            .finish_non_exhaustive()
    }
}

/// What the output is shown on.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Whether it is a terminal, which can be cleared.
    pub is_terminal: bool,
    /// Whether to use colours.
    pub colours: bool,
    /// Characters in a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            is_terminal: false,
            colours: false,
            width: 100,
            height: 50,
        }
    }
}

/// What a command works with.
#[derive(Debug)]
pub struct Session<'a> {
    pub global: Global,
    pub io: Io<'a>,
}

impl Session<'_> {
    /// A client for the cluster.
    pub async fn client(&self) -> Result<Client> {
        connect::client(&self.global.connection).await
    }

    /// Writes to the standard output.
    pub fn print(&mut self, text: &str) -> Result<()> {
        self.io.out.write_all(text.as_bytes())?;
        Ok(self.io.out.flush()?)
    }

    /// Writes a line to the standard error.
    pub fn say(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.io.err, "{line}")?)
    }

    /// The next line of the input; `None` when there is none.
    fn answer(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = self.io.input.read_line(&mut line);
        let read = read.context("reading confirmation")?;
        Ok((read > 0).then(|| line.trim().to_owned()))
    }

    /// Asks a question that only `y` and `Y` answer with yes.
    pub fn ask_y(&mut self, question: &str) -> Result<bool> {
        self.print(question)?;
        let answer = self.answer()?;
        Ok(answer.is_some_and(|answer| answer == "y" || answer == "Y"))
    }

    /// Asks a question that `y` and `yes` in any case answer with yes.
    pub fn ask_yes(&mut self, question: &str) -> Result<bool> {
        self.print(question)?;
        let answer = self.answer()?.context("reading confirmation: EOF")?;
        Ok(["y", "yes"].contains(&answer.to_lowercase().as_str()))
    }
}

/// All objects of a kind, in pages.
pub(crate) async fn list<K>(api: &Api<K>, params: &ListParams) -> Result<Vec<K>>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    const PAGE: u32 = 500;
    let mut all = Vec::new();
    let mut params = params.clone().limit(PAGE);
    loop {
        let page = api.list(&params).await.map_err(said)?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// An error with the words of the API server alone.
pub(crate) fn said(error: kube::Error) -> anyhow::Error {
    if let kube::Error::Api(status) = &error
        && !status.message.is_empty()
    {
        return anyhow::anyhow!(status.message.clone());
    }
    error.into()
}

/// True when the API server says that the object is not there.
pub(crate) fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
