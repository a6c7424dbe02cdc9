"use strict";
(() => {
  const ALTERNATIVES = 8; // shown of each token; the server gives up to 20
  const EXAMPLES = {
    chat: ["Why is the sky blue? Explain it to a child.", "Write a short poem about attention.", "Name three rivers of Europe."],
    text: ["Once upon a time, there was", "The capital of France is", "def fibonacci(n):"],
  };
  const $ = (id) => document.getElementById(id);
  const turns = []; // {mode, prompt, answers, element}; an answer is {model, versions, shown, control, element}
  let models = [];

  // Everything that a server or a model wrote becomes a text node: nothing here parses HTML.
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const button = (text, onclick, more) => make("button", { type: "button", className: "plain", onclick, ...more }, text);
  const say = (text) => { $("said").textContent = text; };
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  const percent = (p) => (p > 0 && p < 1e-4 ? "<0.01 %" : `${(100 * p).toFixed(p < 0.01 ? 2 : 1)} %`);
  const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "(nothing)";
  const spelled = (token) => visible(token.token);

  // ---- the server

  class ServerError extends Error {}

  const ask = async (path, body, signal) => {
    for (;;) {
      const key = sessionStorage.getItem("key");
      const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
      const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
      if (response.ok) return response;
      if (response.status === 401 && sessionStorage.getItem("key") !== key) continue; // it was given meanwhile
      if (response.status !== 401) {
        const { error } = await response.json().catch(() => ({}));
        throw new ServerError(error?.message ?? `The server answers with status ${response.status}.`);
      }
      await unlock(key !== null);
    }
  };

  let unlocking = null; // both columns may find the door locked
  const unlock = (wasWrong) => (unlocking ??= new Promise((resolve) => {
    if (wasWrong) {
      $("lock-note").textContent = "That key is not the server's.";
      $("lock-note").classList.add("bad");
    }
    $("unlock").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem("key", $("key").value.trim());
      $("key").value = "";
      $("lock").close();
      unlocking = null;
      resolve();
    };
    $("lock").oncancel = (event) => event.preventDefault();
    $("lock").showModal();
  }));

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let held = ""; ;) {
      const { value, done } = await reader.read();
      if (done) throw new ServerError("The connection broke off.");
      const parts = (held + value).split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const read = JSON.parse(data);
        if (read.error) throw new ServerError(read.error.message);
        yield read;
      }
    }
  }

  // ---- texts of tokens

  const decoder = () => new TextDecoder("utf-8", { ignoreBOM: true });
  const textOf = (version) => decoder().decode(new Uint8Array(version.tokens.flatMap((token) => token.bytes)));
  const shownOf = (answer) => answer.versions[answer.shown];

  // ---- generation

  const messages = (turn, column) => {
    const system = $("system").value.trim(), found = system ? [{ role: "system", content: system }] : [];
    for (const each of turns.slice(0, turns.indexOf(turn))) {
      const content = each.mode === "chat" && textOf(shownOf(each.answers[column] ?? each.answers[0]));
      if (content) found.push({ role: "user", content: each.prompt }, { role: "assistant", content });
    }
    return [...found, { role: "user", content: turn.prompt }];
  };

  const request = (turn, column, prefix) => {
    const { model } = turn.answers[column], seed = $("seed").value.trim();
    const shared = {
      model: model.id, temperature: Number($("temperature").value), max_tokens: longest(),
      stream: true, stream_options: { include_usage: true },
      ...(seed && { seed: Number(seed) }), ...(prefix.length && { prefix_ids: prefix.map((token) => token.id) }),
    };
    if (turn.mode === "text") return ["/v1/completions", { ...shared, prompt: turn.prompt, logprobs: ALTERNATIVES }];
    const asked = { messages: messages(turn, column), logprobs: true, top_logprobs: ALTERNATIVES };
    return ["/v1/chat/completions", { ...shared, ...asked }];
  };

  /** Write a version of an answer, behind tokens that it begins with. */
  const write = async (turn, column, prefix = []) => {
    const answer = turn.answers[column], control = new AbortController();
    answer.control?.abort();
    const version = { tokens: [...prefix], given: prefix.length, start: performance.now(), first: null, last: null, burst: 0, finish: null };
    answer.shown = answer.versions.push(version) - 1;
    answer.control = control;
    drawAnswer(turn, column);
    showRunning();
    try {
      const [path, body] = request(turn, column, prefix);
      for await (const chunk of events(await ask(path, body, control.signal))) {
        if (chunk.usage) version.usage = chunk.usage;
        const choice = chunk.choices[0], tokens = choice?.logprobs?.content ?? [];
        if (tokens.length) {
          version.last = performance.now();
          const said = choice.delta?.content ?? choice.text;
          // A sentencepiece model's first word has no space before it, though its token has.
          if (!version.tokens.length && said && !said.startsWith(" ") && tokens[0].bytes[0] === 32) tokens[0].bytes.shift();
          if (version.first === null) [version.first, version.burst] = [version.last, tokens.length];
          version.tokens.push(...tokens);
          if (shownOf(answer) === version) follow(() => drawTokens(answer));
        }
        version.finish = choice?.finish_reason ?? version.finish;
      }
    } catch (error) {
      version.finish = "stopped";
      if (error.name !== "AbortError")
        version.error = error instanceof ServerError ? error.message : "The server can't be reached: is it still running?";
    }
    if (answer.control === control) answer.control = null;
    if (shownOf(answer) === version && answer.element.isConnected) follow(() => drawTools(turn, column));
    showRunning();
    if (!isRunning()) say(version.error ?? `The answer is finished: ${count(version.tokens.length, "token")}.`);
  };

  const isRunning = () => turns.some((turn) => turn.answers.some((answer) => answer.control));
  const stop = () => turns.forEach((turn) => turn.answers.forEach((answer) => answer.control?.abort()));
  const chosenModels = () => [$("model"), $("beside")].map((select) => models.find((model) => model.id === select.value)).filter(Boolean);
  const modeNow = () => document.querySelector('input[name="mode"]:checked').value;
  const longest = () => Math.min(2 ** Number($("most").value), ...chosenModels().map((model) => model.max_model_len));

  const addTurn = (prompt, mode = modeNow()) => {
    const answers = chosenModels().map((model) => ({ model, versions: [], shown: 0, control: null }));
    const turn = { mode, prompt, answers, element: make("li") };
    turns.push(turn);
    $("turns").append(turn.element);
    drawAllTools(turns.at(-2));
    drawTurn(turn);
    answers.forEach((_, column) => write(turn, column));
    $("empty").hidden = true;
    scrollTo({ top: document.body.scrollHeight });
  };
  const dropFrom = (index) => {
    for (const turn of turns.splice(index)) {
      turn.answers.forEach((answer) => answer.control?.abort());
      turn.element.remove();
    }
    closeTokens();
    drawAllTools(turns.at(-1));
    $("empty").hidden = turns.length > 0;
  };

  // ---- drawing

  /** Stay at the end of the page while it grows, if the reader is there. */
  const follow = (draw) => {
    const page = document.scrollingElement, atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 60;
    draw();
    if (atEnd) scrollTo({ top: page.scrollHeight });
  };

  const showRunning = () => {
    const running = isRunning();
    $("send").textContent = running ? "Stop" : "Send";
    $("send").classList.toggle("stop", running);
    if (running && document.activeElement === document.body) $("send").focus({ preventScroll: true });
  };

  const joinsPrompt = (turn, answer) => turn.mode === "text" && !answer.model.is_encoder_decoder;

  const drawTurn = (turn) => {
    const edit = button("Edit", () => editPrompt(turn), { title: "Edit this message and go on from there" });
    const prompt = make("div", { className: "prompt", hidden: joinsPrompt(turn, turn.answers[0]) }, make("p", { className: "said" }, turn.prompt), edit);
    const grid = make("div", { className: "replies" }, ...turn.answers.map((answer) => (answer.element = make("section", { className: "answer" }))));
    grid.classList.toggle("two", turn.answers.length > 1);
    turn.element.replaceChildren(prompt, grid);
  };

  const editPrompt = (turn) => {
    const text = make("textarea", { value: turn.prompt, rows: 2, ariaLabel: "Message" });
    const leave = () => {
      drawTurn(turn);
      turn.answers.forEach((_, column) => drawAnswer(turn, column));
      [...turn.element.querySelectorAll("button")].find((each) => each.textContent === "Edit" && each.checkVisibility())?.focus();
    };
    const form = make("form", { className: "edit" }, text, button("Cancel", leave), make("button", { className: "main" }, "Send"));
    form.onsubmit = (event) => {
      event.preventDefault();
      if (!text.value.trim()) return;
      dropFrom(turns.indexOf(turn));
      addTurn(text.value, turn.mode);
    };
    form.onkeydown = (event) => { if (event.key === "Escape") leave(); };
    sendsByEnter(text, form);
    turn.element.firstChild.replaceWith(form);
    fit(text);
    text.focus();
  };

  const drawAnswer = (turn, column) => {
    const answer = turn.answers[column], text = make("p", { className: "text" });
    if (joinsPrompt(turn, answer)) text.append(make("span", { className: "given" }, turn.prompt));
    const head = make("h2", {}, make("bdi", {}, answer.model.id), make("span", { className: "versions" }));
    const foot = make("div", { className: "foot" }, make("p", { className: "speed" }), make("div", { className: "tools" }));
    answer.element.replaceChildren(head, text, make("p", { className: "note bad", hidden: true }), foot);
    Object.assign(answer, { place: { turn, column }, drawn: 0, decoder: decoder() });
    drawTools(turn, column);
  };

  /** Append the tokens that are new. A character that is spread over several of them stands with the last. */
  const drawTokens = (answer) => {
    const version = shownOf(answer), { tokens } = version, text = answer.element.querySelector(".text");
    for (; answer.drawn < tokens.length; answer.drawn++) {
      const token = tokens[answer.drawn], piece = answer.decoder.decode(new Uint8Array(token.bytes), { stream: true });
      const span = make("span", { className: "token" }, piece);
      span.classList.toggle("chosen", Boolean(token.chosen));
      span.classList.toggle("line", piece.includes("\n"));
      span.style.setProperty("--p", Math.exp(token.logprob).toFixed(4));
      span.place = { ...answer.place, index: answer.drawn };
      text.append(span);
    }
    answer.element.querySelector(".speed").replaceChildren(...figures(answer.model, version).map((each) => make("span", {}, each)));
  };

  const figures = (model, { tokens, given, start, first, last, burst, usage, finish, error }) => {
    const fresh = tokens.length - given, parts = [];
    if (tokens.length) parts.push(count(tokens.length, "token"));
    if (first !== null) parts.push(`${((first - start) / 1000).toFixed(2)} s to the first`);
    const rate = (1000 * (fresh - burst)) / (last - first);
    if (rate > 0 && Number.isFinite(rate)) parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
    const surprise = tokens.reduce((sum, token) => sum - token.logprob, 0) / tokens.length;
    if (tokens.length) parts.push(`perplexity ${Math.exp(surprise).toFixed(2)}`);
    if (usage && !model.is_encoder_decoder) parts.push(`context ${usage.total_tokens.toLocaleString("en")} of ${model.max_model_len.toLocaleString("en")}`);
    if (finish === "length") parts.push("limit reached");
    if (finish === "stopped" && !error) parts.push("stopped");
    if (finish === "stop" && !tokens.length) parts.push("The model ended its text at once.");
    return parts;
  };

  const drawTools = (turn, column) => {
    const answer = turn.answers[column], { element, model, versions, shown } = answer, version = shownOf(answer), runs = answer.control !== null;
    const again = (prefix) => () => { dropFrom(turns.indexOf(turn) + 1); write(turn, column, prefix); };
    const turnTo = (step) => () => {
      closeTokens();
      answer.shown += step;
      drawAnswer(turn, column);
      element.querySelector(".versions button:enabled").focus();
    };
    element.querySelector(".text").classList.toggle("runs", runs);
    element.querySelector(".versions").replaceChildren(...(versions.length < 2 || runs || turns.at(-1) !== turn ? [] : [
      button("‹", turnTo(-1), { ariaLabel: "Version before", disabled: shown === 0 }),
      `${shown + 1} of ${versions.length}`,
      button("›", turnTo(1), { ariaLabel: "Next version", disabled: shown === versions.length - 1 }),
    ]));
    const some = version.tokens.length > 0, tools = [
      [some, "Tokens", (event) => openTokens(turn, column, 0, event.currentTarget), "Go through the tokens of this answer"],
      [some, "Copy", (event) => copy(textOf(version), event.currentTarget), "Copy this answer"],
      [column === 0 && joinsPrompt(turn, answer), "Edit", () => editPrompt(turn), "Edit the beginning and go on from there"],
      [true, "Again", again([]), "Write this answer again"],
      [some && version.finish !== "stop" && !model.is_encoder_decoder, "Go on", again(version.tokens), "Go on with this answer"],
    ];
    const shownTools = runs ? [] : tools.filter(([holds]) => holds);
    element.querySelector(".tools").replaceChildren(...shownTools.map(([, name, act, title]) => button(name, act, { title })));
    const note = element.querySelector(".note");
    note.hidden = !version.error;
    note.textContent = version.error ?? "";
    drawTokens(answer);
  };

  const drawAllTools = (turn) => turn?.answers.forEach((_, column) => drawTools(turn, column));

  const copy = async (text, from) => {
    await navigator.clipboard.writeText(text).then(() => say("Copied."), () => say("The browser does not let this page copy."));
    const label = from.textContent;
    from.textContent = $("said").textContent === "Copied." ? "Copied" : label;
    setTimeout(() => { from.textContent = label; }, 1200);
  };

  // ---- the alternatives of a token

  let opened = null; // {turn, column, index, opener}; with an opener it stays until it is closed
  let soon = 0; // the pointer may be on its way to the list, across other tokens

  const closeTokens = () => {
    clearTimeout(soon);
    if (!opened) return;
    const { opener } = opened;
    const inside = $("tokens").contains(document.activeElement);
    $("tokens").hidden = true;
    document.querySelector(".token.open")?.classList.remove("open");
    opened = null;
    if (inside && opener?.isConnected) opener.focus({ preventScroll: true });
  };

  const openTokens = (turn, column, index, opener = null) => {
    clearTimeout(soon);
    const answer = turn.answers[column], { tokens } = shownOf(answer), token = tokens[index];
    document.querySelector(".token.open")?.classList.remove("open");
    opened = { turn, column, index, opener };
    const span = answer.element.querySelectorAll(".token")[index];
    span.classList.add("open");
    const p = Math.exp(token.logprob), shares = token.top_logprobs.map((other) => Math.exp(other.logprob));
    $("tokens-head").replaceChildren(
      make("b", {}, make("bdi", {}, spelled(token))), ` ${percent(p)}`, make("small", {}, `token ${index + 1} of ${tokens.length}`));
    const listed = token.top_logprobs.some((other) => other.id === token.id);
    $("others").replaceChildren(...[...token.top_logprobs, ...(listed ? [] : [token])].map((other) => {
      const isThis = other.id === token.id, ends = answer.model.eos_token_ids.includes(other.id), share = Math.exp(other.logprob);
      const bar = make("i", { ariaHidden: "true" });
      bar.style.setProperty("--p", share.toFixed(4));
      const name = make("bdi", { className: ends ? "ends" : "" }, ends ? "end of the text" : spelled(other));
      const choose = make("button", { type: "button", className: isThis ? "this" : "", onclick: () => branch(other) }, name, bar, make("span", {}, percent(share)));
      if (isThis) choose.ariaCurrent = "true";
      choose.disabled = answer.model.is_encoder_decoder;
      return make("li", {}, choose);
    }));
    const rest = Math.max(0, 1 - shares.reduce((sum, share) => sum + share, 0) - (listed ? 0 : p));
    $("tokens-foot").textContent = `All others: ${percent(rest)}` + (opener && matchMedia("(hover: hover)").matches ? " · ← → other tokens" : "");
    $("tokens").hidden = false;
    place(span);
    if (opener) {
      say(`Token ${index + 1} of ${tokens.length}: ${spelled(token)}, ${percent(p)}`);
      ($("others").querySelector(".this:enabled") ?? $("tokens")).focus({ preventScroll: true });
    }
  };

  const place = (span) => {
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect(), panel = $("tokens");
    const { offsetWidth: width, offsetHeight: height } = panel, { clientWidth, clientHeight } = document.documentElement;
    panel.style.left = `${Math.max(8, Math.min(box.left - 12, clientWidth - width - 8))}px`;
    const below = box.bottom + 6, above = box.top - height - 6;
    panel.style.top = `${below + height < clientHeight - 8 || above < 8 ? Math.min(below, clientHeight - height - 8) : above}px`;
  };

  /** Go on from another token. The end of a text is a token, too. */
  const branch = (other) => {
    const { turn, column, index } = opened, answer = turn.answers[column], { tokens } = shownOf(answer), old = tokens[index];
    closeTokens();
    dropFrom(turns.indexOf(turn) + 1);
    const before = tokens.slice(0, index);
    if (!answer.model.eos_token_ids.includes(other.id))
      return write(turn, column, [...before, { ...other, top_logprobs: old.top_logprobs, chosen: true }]);
    answer.control?.abort();
    answer.control = null;
    answer.shown = answer.versions.push({ tokens: before, given: index, first: null, finish: "stop" }) - 1;
    drawAnswer(turn, column);
  };

  const neighbor = (step) => {
    const { turn, column, index, opener } = opened, next = index + step;
    if (next >= 0 && next < shownOf(turn.answers[column]).tokens.length) {
      openTokens(turn, column, next, opener);
      turn.answers[column].element.querySelector(".token.open").scrollIntoView({ block: "nearest" });
      place(document.querySelector(".token.open"));
    }
  };

  $("tokens").tabIndex = -1;
  $("tokens").onkeydown = (event) => {
    const buttons = [...$("others").querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], side = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) buttons[(at + step + buttons.length) % buttons.length].focus();
    else if (side) neighbor(side);
    else return;
    event.preventDefault();
  };
  $("tokens").onfocusout = (event) => { if (event.relatedTarget && !$("tokens").contains(event.relatedTarget)) closeTokens(); };
  $("tokens").onpointerenter = () => clearTimeout(soon);
  $("tokens").onpointerleave = () => closeSoon();
  const closeSoon = () => { if (!opened?.opener) soon = setTimeout(closeTokens, 250); };
  document.addEventListener("pointerover", (event) => {
    const at = event.target.place;
    if (event.pointerType !== "mouse" || opened?.opener) return;
    clearTimeout(soon);
    if (at) soon = setTimeout(() => openTokens(at.turn, at.column, at.index), opened ? 90 : 0);
    else if (!$("tokens").contains(event.target)) closeSoon();
  });
  document.addEventListener("click", (event) => {
    const at = event.target.place;
    if (at) openTokens(at.turn, at.column, at.index, at.turn.answers[at.column].element.querySelector(".tools button") ?? $("send"));
    else if (!$("tokens").contains(event.target) && !event.target.closest(".tools")) closeTokens();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (opened) closeTokens();
    else if (isRunning()) stop();
  });
  document.addEventListener("scroll", () => { if (opened && !opened.opener) closeTokens(); }, { passive: true });

  // ---- controls

  const fit = (area) => {
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight * 0.4)}px`;
  };
  const sendsByEnter = (area, form) => {
    area.addEventListener("input", () => fit(area));
    area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
  };
  sendsByEnter($("text"), $("compose"));
  $("compose").onsubmit = (event) => {
    event.preventDefault();
    if (isRunning()) return stop();
    if (!$("text").value.trim() || !chosenModels().length) return;
    addTurn($("text").value);
    $("text").value = "";
    fit($("text"));
  };
  $("new").onclick = () => { dropFrom(0); $("text").focus(); };
  $("temperature").oninput = () => { $("temperature-is").value = Number($("temperature").value) || "0: always the likeliest"; };
  $("most").oninput = () => { $("most-is").value = count(longest(), "token"); $("most").ariaValueText = $("most-is").value; };
  $("colors").onchange = () => document.body.classList.toggle("uncolored", !$("colors").checked);

  const showMode = () => {
    const chat = modeNow() === "chat", [first] = chosenModels();
    $("system-part").hidden = !chat;
    $("text").placeholder = $("text").ariaLabel = chat ? "Message" : first?.is_encoder_decoder ? "Text to rewrite" : "Beginning of a text";
    $("examples").replaceChildren(...(first ? EXAMPLES[modeNow()] : []).map((text) => button(text, () => addTurn(text))));
  };
  const showModel = () => {
    const [model] = chosenModels();
    document.querySelector(`input[name="mode"][value="${model.chat_template ? "chat" : "text"}"]`).checked = true;
    $("greeting").textContent = chosenModels().map((each) => each.id).join(" and ");
    const facts = [model.model_type, `context of ${count(model.max_model_len, "token")}`, model.chat_template ? "chat template" : "no chat template: it continues texts"];
    $("about").replaceChildren(...(chosenModels().length > 1 ? ["The same message goes to both."] : facts).map((fact) => make("span", {}, fact)));
    $("most").max = Math.ceil(Math.log2(Math.min(...chosenModels().map((each) => each.max_model_len))));
    $("most").oninput();
    showMode();
  };
  $("mode").onchange = showMode;
  $("model").onchange = $("beside").onchange = showModel;

  const begin = async () => {
    if (matchMedia("(max-width: 900px)").matches) $("settings").open = false;
    try {
      const { data } = await (await ask("/v1/models")).json();
      models = data.filter((model) => model.capabilities.includes("completion"));
      const options = () => models.map((model) => make("option", { value: model.id }, model.id));
      $("model").append(...options());
      $("beside").append(...options());
      $("beside").parentElement.hidden = models.length < 2;
      if (models.length) showModel();
      else $("greeting").textContent = `No model here writes texts: ${data.map((model) => model.id).join(", ")}.`;
      $("text").focus();
    } catch (error) {
      $("greeting").textContent = error instanceof ServerError ? error.message : "The server can't be reached: is it still running?";
    }
  };
  begin();
})();
