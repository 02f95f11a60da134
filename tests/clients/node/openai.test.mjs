// openai-node: promises, streams, helpers, parsed answers, tools and embeddings. Run by `node --test`.

import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({
  baseURL: `${process.env.FLASHLET_CLIENTS_URL}/v1`,
  apiKey: "none",
  maxRetries: 0,
});
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const fixed = { model, messages, temperature: 0, seed: 1, max_tokens: 40 };

const Weather = z.object({ sky: z.enum(["clear", "cloudy"]), windy: z.boolean() });
const City = z.object({ city: z.enum(["Paris", "London"]) });
const getWeather = zodFunction({ name: "get_weather", parameters: City });

test("a stream equals the plain answer", async () => {
  const plain = await client.chat.completions.create(fixed);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...fixed, stream: true })) {
    text += chunk.choices[0].delta.content ?? "";
  }
  assert.equal(text, plain.choices[0].message.content);
});

test("the streaming helper", async () => {
  const stream = client.chat.completions.stream({
    ...fixed, stop: ".", max_tokens: 200, stream_options: { include_usage: true },
  });
  let text = "";
  stream.on("content", (delta) => { text += delta; });
  const final = await stream.finalChatCompletion();
  assert.equal(text, final.choices[0].message.content);
  assert.equal(final.choices[0].message.role, "assistant");
  assert.ok(final.usage.completion_tokens > 0);
});

test("parse with zod, plain and streamed", async () => {
  const request = { ...fixed, max_tokens: 60, response_format: zodResponseFormat(Weather, "weather") };
  const plain = await client.chat.completions.parse(request);
  Weather.parse(plain.choices[0].message.parsed);
  const final = await client.chat.completions.stream(request).finalChatCompletion();
  assert.deepEqual(final.choices[0].message.parsed, plain.choices[0].message.parsed);
});

test("tools in two steps", async () => {
  const request = { ...fixed, max_tokens: 100, tools: [getWeather], tool_choice: "required" };
  const asked = await client.chat.completions.parse(request);
  const message = asked.choices[0].message;
  assert.equal(asked.choices[0].finish_reason, "tool_calls");
  assert.ok(message.tool_calls.length > 0);
  const results = message.tool_calls.map((call) => {
    City.parse(call.function.parsed_arguments);
    return { role: "tool", tool_call_id: call.id, content: "clear sky" };
  });
  const answer = await client.chat.completions.create({
    ...fixed, tools: [getWeather], tool_choice: "none", messages: [...messages, message, ...results],
  });
  assert.ok(answer.choices[0].message.content.length > 0);
});

test("a streamed tool call equals the plain one", async () => {
  const request = { ...fixed, max_tokens: 100, tools: [getWeather], tool_choice: "required" };
  const calls = (answer) => answer.choices[0].message.tool_calls.map(
    (call) => [call.function.name, call.function.arguments],
  );
  const plain = await client.chat.completions.create(request);
  const streamed = await client.chat.completions.stream(request).finalChatCompletion();
  assert.deepEqual(calls(streamed), calls(plain));
  assert.equal(streamed.choices[0].finish_reason, "tool_calls");
});

test("runTools goes on until there is an answer", async () => {
  let called = 0;
  const tool = zodFunction({
    name: "get_weather",
    parameters: City,
    function: () => { called += 1; return "clear sky"; },
  });
  const runner = client.chat.completions.runTools(
    { ...fixed, max_tokens: 100, tools: [tool], tool_choice: { type: "function", function: { name: "get_weather" } } },
  );
  await runner.done();
  assert.ok(called >= 1);
});

test("embeddings are the same as base64 and as floats", async () => {
  const input = ["The weather is fine.", "Numbers are even or odd."];
  const byDefault = await client.embeddings.create({ model, input });
  const asFloats = await client.embeddings.create({ model, input, encoding_format: "float" });
  for (const [i, item] of byDefault.data.entries()) {
    const other = asFloats.data[i].embedding;
    assert.equal(item.embedding.length, other.length);
    item.embedding.forEach((value, j) => assert.ok(Math.abs(value - other[j]) < 1e-6));
  }
});

test("errors have their classes", async () => {
  await assert.rejects(client.chat.completions.create({ ...fixed, model: "no-such-model" }), (error) =>
    error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && Boolean(error.requestID));
  await assert.rejects(
    client.completions.create({ model, prompt: "one two ".repeat(9000), stream: true }),
    (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
  );
});
