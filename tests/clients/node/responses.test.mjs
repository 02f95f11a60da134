// openai-node: /v1/responses, stored, streamed, in the background. Run by `node --test`.

import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({
  baseURL: `${process.env.FLASHLET_CLIENTS_URL}/v1`,
  apiKey: "none",
  maxRetries: 0,
});
const model = (await client.models.list()).data[0].id;
const fixed = { model, temperature: 0, max_output_tokens: 24 };

const Weather = z.object({ sky: z.enum(["clear", "cloudy"]), windy: z.boolean() });
const City = z.object({ city: z.enum(["Paris", "London"]) });
const getWeather = zodResponsesFunction({ name: "get_weather", parameters: City });

test("a conversation goes on", async () => {
  const first = await client.responses.create({ ...fixed, input: "Say hello." });
  const second = await client.responses.create({ ...fixed, input: "Again.", previous_response_id: first.id });
  const told = [
    { role: "user", content: "Say hello." }, ...first.output, { role: "user", content: "Again." },
  ];
  const again = await client.responses.create({ ...fixed, input: told, store: false });
  assert.equal(again.output_text, second.output_text);
  const items = await client.responses.inputItems.list(second.id, { order: "asc" });
  assert.equal(items.data.length, 3);
  await client.responses.delete(second.id);
  await assert.rejects(client.responses.retrieve(second.id), OpenAI.NotFoundError);
});

test("a stream equals the plain answer", async () => {
  const request = { ...fixed, input: "Count from one to five." };
  const plain = await client.responses.create(request);
  const stream = client.responses.stream(request);
  let text = "";
  let next = 0;
  stream.on("response.output_text.delta", (event) => { text += event.delta; });
  stream.on("event", (event) => { assert.equal(event.sequence_number, next); next += 1; });
  const final = await stream.finalResponse();
  assert.equal(text, plain.output_text);
  assert.equal(final.status, plain.status);
});

test("parse with zod", async () => {
  const parsed = await client.responses.parse({
    model, temperature: 0, input: "What is the weather in Paris?", text: { format: zodTextFormat(Weather, "weather") },
  });
  Weather.parse(parsed.output_parsed);
});

test("tools in two steps", async () => {
  const request = { ...fixed, max_output_tokens: 100, tools: [getWeather] };
  const asked = await client.responses.parse({ ...request, input: "Weather in Paris?", tool_choice: "required" });
  const calls = asked.output.filter((item) => item.type === "function_call");
  assert.ok(calls.length > 0);
  const input = calls.map((call) => {
    City.parse(call.parsed_arguments);
    return { type: "function_call_output", call_id: call.call_id, output: "clear sky" };
  });
  const answer = await client.responses.create({
    ...request, input, previous_response_id: asked.id, tool_choice: "none",
  });
  assert.ok(answer.output_text.length > 0);
});

test("a background response is polled, and streamed later", async () => {
  let response = await client.responses.create({ ...fixed, input: "Say hello.", background: true });
  while (["queued", "in_progress"].includes(response.status)) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    response = await client.responses.retrieve(response.id);
  }
  assert.ok(response.output_text.length > 0);
  let last;
  for await (const event of await client.responses.retrieve(response.id, { stream: true, starting_after: 1 })) {
    last = event;
  }
  assert.equal(last.response.output_text ?? last.response.output[0].content[0].text, response.output_text);
});
