package interop;

import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.JsonValue;
import com.openai.errors.BadRequestException;
import com.openai.errors.NotFoundException;
import com.openai.errors.UnprocessableEntityException;
import com.openai.models.conversations.Conversation;
import com.openai.models.conversations.ConversationCreateParams;
import com.openai.models.conversations.ConversationUpdateParams;
import com.openai.models.conversations.items.ConversationItem;
import com.openai.models.conversations.items.ItemCreateParams;
import com.openai.models.conversations.items.ItemDeleteParams;
import com.openai.models.conversations.items.ItemListParams;
import com.openai.models.conversations.items.ItemRetrieveParams;
import com.openai.models.responses.EasyInputMessage;
import com.openai.models.responses.ResponseInputItem;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.stream.IntStream;

/** The official SDK for Java against the HTTP edge: {@code OpenAi <base URL>}. It says {@code ok} after every step. */
public final class OpenAi {
  private static OpenAIClient client;

  public static void main(String[] arguments) {
    client = OpenAIOkHttpClient.builder().baseUrl(arguments[0]).apiKey("unused").build();
    step("create", OpenAi::create);
    step("pages", OpenAi::pages);
    step("items", OpenAi::items);
    step("errors", OpenAi::errors);
    step("keys", OpenAi::keys);
    client.close();
    System.exit(0);
  }

  private static void create() {
    var metadata =
        ConversationCreateParams.Metadata.builder().putAdditionalProperty("a", JsonValue.from("b")).build();
    Conversation made =
        client
            .conversations()
            .create(ConversationCreateParams.builder().metadata(metadata).addItem(message("hello")).build());
    made.validate();
    client.conversations().retrieve(made.id()).validate();
    var changed =
        ConversationUpdateParams.Metadata.builder().putAdditionalProperty("c", JsonValue.from("d")).build();
    client.conversations().update(made.id(), ConversationUpdateParams.builder().metadata(changed).build()).validate();
    check(client.conversations().delete(made.id()).validate().deleted(), "deleted");
  }

  private static void pages() {
    String id = client.conversations().create().id();
    for (int start = 0; start < 45; start += 15) {
      var items = ItemCreateParams.builder();
      IntStream.range(start, start + 15).forEach(number -> items.addItem(message(Integer.toString(number))));
      client.conversations().items().create(id, items.build()).validate();
    }
    for (var order : List.of(ItemListParams.Order.ASC, ItemListParams.Order.DESC)) {
      List<Integer> found = new ArrayList<>();
      var parameters = ItemListParams.builder().limit(7).order(order).build();
      for (ConversationItem item : client.conversations().items().list(id, parameters).autoPager()) {
        found.add(Integer.valueOf(item.validate().asMessage().content().get(0).asInputText().text()));
      }
      List<Integer> expected = new ArrayList<>(IntStream.range(0, 45).boxed().toList());
      if (order.equals(ItemListParams.Order.DESC)) {
        Collections.reverse(expected);
      }
      check(expected.equals(found), "order of " + found);
    }
  }

  private static void items() {
    String id = client.conversations().create(ConversationCreateParams.builder().addItem(message("hello")).build()).id();
    String item = client.conversations().items().list(id).data().get(0).asMessage().id();
    var get = ItemRetrieveParams.builder().conversationId(id).build();
    check(client.conversations().items().retrieve(item, get).validate().asMessage().id().equals(item), "item");
    var delete = ItemDeleteParams.builder().conversationId(id).build();
    check(client.conversations().items().delete(item, delete).validate().id().equals(id), "its conversation");
    try {
      client.conversations().items().retrieve(item, get);
      throw new AssertionError("it is still there");
    } catch (NotFoundException expected) {
      check(expected.code().isEmpty(), "no code");
    }
  }

  private static void errors() {
    String id = client.conversations().create().id();
    try {
      client.conversations().items().list(id, ItemListParams.builder().limit(1000).build());
      throw new AssertionError("a thousand items");
    } catch (BadRequestException expected) {
      check(expected.code().equals(java.util.Optional.of("integer_above_max_value")), "code");
      check(expected.param().equals(java.util.Optional.of("limit")), "param");
    }
  }

  private static void keys() {
    var empty = ConversationCreateParams.builder().putAdditionalHeader("Idempotency-Key", "java-" + System.nanoTime());
    String id = client.conversations().create(empty.build()).id();
    check(client.conversations().create(empty.build()).id().equals(id), "the same conversation");
    try {
      client.conversations().create(empty.addItem(message("other")).build());
      throw new AssertionError("another request");
    } catch (UnprocessableEntityException expected) {
      check(expected.code().equals(java.util.Optional.of("idempotency_key_reused")), "code");
    }
  }

  private static ResponseInputItem message(String text) {
    var message = EasyInputMessage.builder().role(EasyInputMessage.Role.USER).content(text).build();
    return ResponseInputItem.ofEasyInputMessage(message);
  }

  private static void step(String name, Runnable work) {
    work.run();
    System.out.println(name + " ok");
  }

  private static void check(boolean holds, String what) {
    if (!holds) {
      throw new AssertionError(what);
    }
  }
}
